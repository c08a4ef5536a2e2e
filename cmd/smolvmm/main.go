// Command smolvmm boots a NetBSD kernel in a virtual machine on Linux/KVM.
//
// It is the small one of two programs: it becomes smolvmm-full, in the folder beside
// this file, for all that is not a boot.
package main

import "github.com/smolvmm/smolvmm/cmd/smolvmm/internal/cli"

func main() { cli.Lean().Main() }
