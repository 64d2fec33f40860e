"""What runs inside the sandbox, or builds it: standard library only, nothing of ours, so that every start is quick.

Nobody imports it but by its path: it is put on the path of a new process as a package of its own (`confined`).
To add something that runs inside: a module with a `main`, and `program.confined_jail("module")` to start it.

    launcher  namespaces, an empty root, limits; then it watches the memory of all processes together
    filters   the system calls that nothing inside may use
    group     a control group for a program's memory, where one may be made
    watch     how much memory a process and all its descendants hold
    wire      values as plain data, the only thing that crosses from a program to its judge
    runner    the program's side: runs it, then answers the judge's calls
    asserts   the judge's side: runs the tests, in a process and a jail that the program never sees
"""
