// Package demo is the project's own test guest: a tiny PVH kernel that drives
// every device there is, checks what it sees, and on request misbehaves. Its
// source is in guest/, its bytes are embedded; README.md has its protocol.
package demo

import (
	_ "embed"
	"strings"
)

// The bytes are rebuilt from guest/ with Debian 12's gcc and ld; -update says
// to write them. guest.toolchain records who built them.
//
//go:generate go test -count=1 -run ^TestGuestIsItsSource$ . -update

//go:embed guest.elf
var kernel string

// Kernel is the guest's ELF file, without a copy of it. Each call gives a
// reader of its own.
func Kernel() *strings.Reader { return strings.NewReader(kernel) }

// What the guest and a monitor agree on beyond PVH.
const (
	// PortExit ends the machine with the byte written as its status.
	PortExit = 0x501
	// PortMark takes milestones, one of the Mark constants.
	PortMark = 0x502

	// MarkEntry is written by the guest's first instructions.
	MarkEntry = 1
	// MarkKernel is written in long mode, with start_info read.
	MarkKernel = 2
	// MarkMode is written before the mode runs: console, IDT, clock and
	// local APIC are up.
	MarkMode = 3
	// MarkEnd is written before the guest ends itself.
	MarkEnd = 4

	// ExitOK, ExitFailed and ExitException are the guest's own statuses:
	// all checks passed; one failed; an exception it did not expect.
	ExitOK        = 0
	ExitFailed    = 1
	ExitException = 97

	// Argument chooses the mode on the kernel's command line:
	// demo=<mode>[=<value>][,<option>…].
	Argument = "demo="
)
