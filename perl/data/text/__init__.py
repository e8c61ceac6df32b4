"""Dialogues, chats and their templates, tokenizers."""
