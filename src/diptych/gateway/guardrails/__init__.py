"""What may be said to a model and by it: denied words and patterns, found in text that is whole or still coming."""
