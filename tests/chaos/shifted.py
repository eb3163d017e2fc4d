"""Run a program whose wall clock is wrong: ``shifted.py <seconds> <module or file> <arguments>``."""

import datetime
import runpy
import sys

import time_machine

if __name__ == "__main__":
    offset_s, program = float(sys.argv[1]), sys.argv[2]
    time_machine.travel(datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=offset_s)).start()
    sys.argv = sys.argv[2:]
    (runpy.run_path if program.endswith(".py") else runpy.run_module)(program, run_name="__main__")
