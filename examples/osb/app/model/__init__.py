"""What there is, apart from mail: tables in the database, posts and comments in them, and the pages made of those."""
