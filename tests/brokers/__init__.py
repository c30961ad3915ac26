"""Tests of brokers: a package, for a store has a module of the same name."""
