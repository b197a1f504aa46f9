"""The only code that touches somebody's model: adapters, hooks and the handle that undoes them."""
