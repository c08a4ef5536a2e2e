//go:build !netbsd

package main

import "runtime"

func numCPU() (int, error) { return runtime.NumCPU(), nil }
