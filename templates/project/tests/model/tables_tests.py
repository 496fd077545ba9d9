"""Tests of app/model/tables.py. Take the comment signs off, as you did there."""

# from app.model.tables import Subscription, metadata, subscribers
# from config.settings import database
# from lamson.testing import *
# from sqlalchemy.exc import IntegrityError
#
#
# def setup_function():
#     metadata.drop_all(database.engine)
#     metadata.create_all(database.engine)
#
#
# @with_setup(setup_function)
# def test_a_list_has_those_who_subscribed_to_it():
#     with database.session() as session, session.begin():
#         session.add(Subscription(list_name="cats", address="zed@example.com"))
#         session.add(Subscription(list_name="dogs", address="joe@example.com"))
#     with database.session() as session:
#         assert_equal(subscribers(session, "cats"), ["zed@example.com"])
#
#
# @with_setup(setup_function)
# def test_nobody_is_on_a_list_twice():
#     with assert_raises(IntegrityError), database.session() as session, session.begin():
#         session.add(Subscription(list_name="cats", address="zed@example.com"))
#         session.add(Subscription(list_name="cats", address="zed@example.com"))
