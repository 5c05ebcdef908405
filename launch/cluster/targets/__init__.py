"""The engines that start ranks on several hosts."""
