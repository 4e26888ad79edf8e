"""What every stage needs: parameters, files, errors, GPU selection, the watchdog and the usage recorder."""
