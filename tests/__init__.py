"""Tests; they mirror finetune/ one to one."""
