// Package net is the VirtIO network device (VirtIO 1.2 §5.1): pairs of queues
// in front of a Backend, the network that its frames go to and come from. It
// knows Ethernet frames and virtio_net_hdr, and nothing of what is in a frame.
package net

// HeaderLen is the size of virtio_net_hdr of a device that has VERSION_1, in
// bytes: num_buffers is always there (VirtIO 1.2 §5.1.6).
const HeaderLen = 12

// Header is a virtio_net_hdr as it lies in memory: flags, gso_type, and the
// little-endian words hdr_len, gso_size, csum_start, csum_offset, num_buffers.
type Header = [HeaderLen]byte

// Backend is a network. Its types are plain ones, so that a network need not
// know this package to be one; package netstack is.
//
// A device calls Send from a goroutine for each of its transmit queues, and Next
// and Pop from one goroutine at a time. The network calls what OnReady was given
// from any goroutine of its own.
type Backend interface {
	// MTU is the largest payload of a frame, in bytes, without the 14 of the
	// Ethernet header: what the device tells a driver that asks (VIRTIO_NET_F_MTU).
	MTU() int
	// Offloads are the feature bits that the network can bear, of those that
	// say what a header may ask for: CSUM, GUEST_CSUM, HOST_TSO4 and 6,
	// GUEST_TSO4 and 6 (VirtIO 1.2 §5.1.3). The device offers no others.
	Offloads() uint64
	// Negotiated says which of them the driver took; frames given by Next keep
	// to that. 0 after a reset. Frames that wait may be dropped.
	Negotiated(offloads uint64)

	// Send takes one frame of the guest's. h is a copy that the device has
	// checked against what was negotiated, the offsets in it are not; frame is
	// the Ethernet frame as runs of guest memory, whose bytes may change while
	// they are read and are not to be touched after Send has returned. Send
	// does not wait for the world: what the network has no room for it drops,
	// and counts.
	Send(h *Header, frame [][]byte)

	// Next gives the frame that is next for the guest, as runs of bytes with
	// its header (num_buffers is the device's to fill in), and true; or false
	// where none is waiting. It is the same one until Pop. Both results are
	// the caller's to read until then.
	Next() (h *Header, frame [][]byte, ok bool)
	// Pop is done with the frame that Next gave.
	Pop()
	// OnReady registers what is to be called, without blocking, when frames
	// wait where Next has last said that there are none; nil ends it, and no
	// call is under way when OnReady(nil) has returned.
	OnReady(wake func())
}
