"""How a method's hooks are looked at: what they must give, and what is said where one fails."""
