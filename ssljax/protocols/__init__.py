"""Evaluation protocols. They see a network only as `encode(image) -> features`, and most see only the features."""
