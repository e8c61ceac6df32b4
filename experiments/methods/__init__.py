"""What each PEFT method costs, and what publications say it costs; see __main__.py."""
