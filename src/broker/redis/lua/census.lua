-- What a group is, in one look.
return census()
