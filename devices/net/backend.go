// Package net is the VirtIO network device (VirtIO 1.2 §5.1): pairs of queues
// in front of a Backend, the network that its frames go to and come from. It
// knows Ethernet frames and virtio_net_hdr, and of what is in a frame only what
// tells one flow from another.
//
// A frame of the guest's is handed to the network as runs of guest memory, without
// a copy; a frame for the guest is copied once, into the buffers that it posted.
// Frames go in batches, for each of which the rings are published once. The path
// of a frame allocates nothing.
//
// # What is dropped
//
// A frame is dropped, and counted, when its header asks for what was not
// negotiated, when it is too short or too long for the link, when the link is down
// and, to the guest, when the guest does not want its address or posts buffers that
// cannot hold it. Nothing else is: a guest without buffers and a rate limit make
// the frames wait where they are. A ring that breaks the rules of VirtIO is a
// fault: the device tells the driver (DEVICE_NEEDS_RESET) and stops until it is
// reset.
//
// # Goroutines
//
// From DRIVER_OK on there is one for each transmit queue, one for all receive
// queues, and one for the control queue. Each sleeps at one doorbell, channel or
// timer at a time, and is gone when Reset, Quiesce or Close returns.
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
