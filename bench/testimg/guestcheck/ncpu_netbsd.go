package main

import "golang.org/x/sys/unix"

func numCPU() (int, error) {
	n, err := unix.SysctlUint32("hw.ncpu")
	return int(n), err
}
