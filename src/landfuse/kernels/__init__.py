"""Speed only: the selective scan behind one door (plain, torch, native, Triton), attention and linear layers."""
