"""The float program that every artifact is made from: body, head, decode, and a name for every value."""
