"""What runs inside the sandbox, or builds it: standard library only, nothing of ours, so that every start is quick.

It is put on the path as a package of its own (`confined`), never imported as a part of prunetune by what it starts.

    launcher  namespaces, an empty root, limits; then it watches the memory of all processes together
    filters   the system calls that nothing inside may use
    watch     how much memory a process and all its descendants hold
    wire      values as plain data, the only thing that crosses from a program to its judge
    runner    the program's side: runs it, then answers the judge's calls
    asserts   the judge's side: runs the tests, in a process and a jail that the program never sees
"""
