"""What every stage stands on: parameters, files, errors, the watchdog and the recorder."""
