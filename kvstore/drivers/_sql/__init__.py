"""What PostgreSQL and MySQL share: the driver, its connections and their time, what a server has to tell, statements."""
