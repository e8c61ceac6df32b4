"""PEFT methods, a file each; `perl/peft/protocol.py` says what a method is."""
