"""Kinds of input, a file each: what a valid one is, how it is spoilt, what reads it.

files() -> {name: bytes}            a valid input; the folder that `read` is given holds it
spoil(files, rng) -> {name: bytes}  the files that are to be other; None in place of bytes: absent
read(folder, rng) -> value          hands the folder to perl; what it raises is judged
check(folder, value)                optional: raises AssertionError where what was accepted is wrong
prepare()                           optional: called once in the process
SHARE                               of a hundred inputs, how many are of this kind
"""
