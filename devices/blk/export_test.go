package blk

import "github.com/smolvmm/smolvmm/devices"

// For tests outside the package, which use the files of package disk.

// Drain serves what the ring holds on the caller's goroutine.
func (d *Device) Drain(a devices.Activation) { d.newWorker(a).drain() }

const (
	TypeIn          = typeIn
	TypeOut         = typeOut
	TypeFlush       = typeFlush
	TypeGetID       = typeGetID
	TypeDiscard     = typeDiscard
	TypeWriteZeroes = typeWriteZeroes

	MaxTransfer = maxTransfer
)

var (
	Header = header
	Segs   = segs
	Join   = join
)
