"""Engines that sample tokens; rollout code sees only `contracts.Engine`."""
