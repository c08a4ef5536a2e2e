//go:build !linux && !(netbsd && amd64)

package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, "smolinit is the first process of a NetBSD/amd64 guest, or a service of a Linux guest: build it with GOOS=netbsd GOARCH=amd64, or GOOS=linux, and CGO_ENABLED=0")
	os.Exit(2)
}
