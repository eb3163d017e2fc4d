"""The objects of the store and the rows that name them: who holds a key, which keys no row names, which are lost."""
