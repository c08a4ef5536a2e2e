// Command floor is the least that a monitor in Go can do: open /dev/kvm, make a VM with memory and one vCPU, take one
// exit. It then prints the byte that the guest wrote. floorc/floor.c is the same in C.
//
//	floor MEMORY-IN-MIB [hold]
package main

import (
	"os"
	"strconv"
)

// code is mov dx, 0x3f8; mov al, 2; out dx, al; hlt, in 16-bit code.
var code = []byte{0xBA, 0xF8, 0x03, 0xB0, 0x02, 0xEE, 0xF4}

func main() {
	mib := 1
	if len(os.Args) > 1 {
		n, err := strconv.Atoi(os.Args[1])
		if err != nil || n < 1 || n > 4096 {
			os.Exit(2)
		}
		mib = n
	}
	b, status := oneExit(mib << 20)
	if status == 0 {
		if _, err := os.Stdout.Write([]byte{b}); err != nil {
			status = 22
		}
	}
	if status == 0 && len(os.Args) > 2 && os.Args[2] == "hold" {
		pause()
	}
	os.Exit(status)
}
