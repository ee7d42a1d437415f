"""The verb that draws what others wrote down."""
