"""The classifier: quantised base, head, adapter, prediction."""

from stages.runtime import startup

startup.import_bitsandbytes()  # before peft imports it
