"""Look at a recording token by token: a page for the browser and a view for the notebook, from one prepared dataset."""
