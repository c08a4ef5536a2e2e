// Package vsock is the VirtIO socket device (VirtIO 1.2 §5.10): streams between
// ports of the guest and ports of the host, with credit in both directions.
//
// Three pieces stand apart: the connection table with its credit (table.go,
// flow.go), which knows neither queues nor sockets; the packets and the queues (tx.go,
// pump.go); and the host's side, which is injected as a Host. Package
// devices/vsock/muxer is the one over Unix sockets.
//
// A byte of the guest's goes from its memory into the host's stream by one write,
// and the other way by one read; only what a slow host does not take yet is copied
// into a buffer, which credit bounds. Nothing that the guest or the host does makes
// the device wait for one connection at another's cost.
package vsock

// Host is the host's side. The device calls it from one goroutine at a time, and
// none of its methods blocks.
type Host interface {
	// Open is called when the guest connects to a port of the host's. An error
	// resets the guest's connection: nobody listens there.
	Open(guestPort, hostPort uint32) (Stream, error)
	// Next gives what has happened since it was last called: false when that
	// is all.
	Next() (Event, bool)
	// OnReady says whom to tell that Next has something again; nil is nobody.
	// It is called once for what is there already. wake does not block and may
	// be called from anywhere.
	OnReady(wake func())
}

// Event is what happens to a stream on the host's side.
type Event struct {
	Stream Stream
	// Call: the host wants to reach Port of the guest's by a new stream.
	Call bool
	Port uint32
	// Readable and Writable: the stream has bytes or its end, takes some again.
	Readable, Writable bool
}

// Stream is the host's end of one connection. Its methods do not block. A stream
// that Close has been called on is heard of no more.
type Stream interface {
	// Mark is the device's own mark on a stream; it embeds one.
	Mark() *Hook
	// Opened says that the guest has taken a call, on this port of the host's.
	Opened(hostPort uint32)
	// Read fills runs with what is there: more says that there may be more at
	// once, otherwise an event tells when there is. io.EOF is the end of what
	// the host sends. Gone says, at the end, that it takes nothing either.
	Read(runs [][]byte) (n int, more bool, err error)
	// Write takes what it can; if that is not all, an event tells when it
	// takes more. An error says that the host takes no more ever.
	Write(runs [][]byte) (n int, err error)
	// Gone says whether the host has closed both ways.
	Gone() bool
	// CloseRead says that the guest takes no more, CloseWrite that it sends no more.
	CloseRead()
	CloseWrite()
	// Close ends the stream; before Opened it refuses a call.
	Close()
}

// Hook ties a Stream to its connection in the device. The zero value is ready.
type Hook struct{ c *conn }

// Mark makes a struct that embeds one fit for Stream.
func (h *Hook) Mark() *Hook { return h }
