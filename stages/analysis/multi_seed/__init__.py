"""Compare recipes that were trained with several seeds and answer the same test rows.

A score of such a recipe varies for two reasons: other seeds give other trainings, and other test rows may be easier
or harder. Studies with several readers and cases in radiology have the same design, and this package uses their model
(Obuchowski and Rockette 1995, Communications in Statistics: Simulation and Computation 24; Hillis 2007, Statistics in
Medicine 26). The variance of a recipe's mean score has two components: the variance between its trainings over their
number, and the covariance that the trainings share because they answer the same rows.

- `comparison`: start here. `compare_recipes` returns scores and differences.
- `scores`: accuracy and F1 of one recipe, with their intervals.
- `variance`: the components of variance of a mean score, and of a difference.
- `significance`: margin of error, p-value and Holm's adjustment, from these components.
- `power`: the smallest difference that an experiment can detect.

All functions are pure functions of arrays. Scores and their differences are between 0 and 1, not in percent.
"""
