"""What both ways of distilling a memory share: the recipe, the documents, and where
training starts."""
