package vsock

import "encoding/binary"

const (
	deviceID = 19 // VirtIO 1.2 §5.10.1

	// Queues by index (VirtIO 1.2 §5.10.2), and their sizes in descriptors.
	queueRX    = 0
	queueTX    = 1
	queueEvent = 2
	ringSize   = 256
	eventSize  = 16 // there is one event, and it comes once a restore

	featureStream   uint64 = 1 << 0  // VIRTIO_VSOCK_F_STREAM, §5.10.3
	featureVersion1 uint64 = 1 << 32 // §6.1, the transport's to offer

	cfgLen = 8 // configuration space: le64 guest_cid, §5.10.4

	eventTransportReset = 0 // §5.10.6.7: le32, all that an event has
	eventLen            = 4
)

// HostCID is the host's address (VirtIO 1.2 §5.10.4). MinCID and MaxCID bound a
// guest's: 0 to 2 are reserved, as is what is all ones, and of 64 bits only the
// lower half is in use.
const (
	HostCID = 2
	MinCID  = 3
	MaxCID  = 1<<32 - 2
)

// Header is virtio_vsock_hdr (VirtIO 1.2 §5.10.6) as a private copy.
type header struct {
	srcCID, dstCID   uint64
	srcPort, dstPort uint32
	len              uint32 // bytes of payload behind the header
	typ, op          uint16
	flags            uint32
	bufAlloc, fwdCnt uint32
}

const headerLen = 44 // bytes

const typeStream = 1 // VIRTIO_VSOCK_TYPE_STREAM

// op is an operation (VirtIO 1.2 §5.10.6).
const (
	opRequest       = 1
	opResponse      = 2
	opRST           = 3
	opShutdown      = 4
	opRW            = 5
	opCreditUpdate  = 6
	opCreditRequest = 7
	ops             = 8
)

// Flags of SHUTDOWN (VirtIO 1.2 §5.10.6.5): who sends them will not receive, or
// not send, any more.
const (
	shutReceive = 1
	shutSend    = 2
	shutBoth    = shutReceive | shutSend
)

func (h *header) parse(b *[headerLen]byte) {
	le := binary.LittleEndian
	h.srcCID, h.dstCID = le.Uint64(b[0:]), le.Uint64(b[8:])
	h.srcPort, h.dstPort = le.Uint32(b[16:]), le.Uint32(b[20:])
	h.len = le.Uint32(b[24:])
	h.typ, h.op = le.Uint16(b[28:]), le.Uint16(b[30:])
	h.flags = le.Uint32(b[32:])
	h.bufAlloc, h.fwdCnt = le.Uint32(b[36:]), le.Uint32(b[40:])
}

func (h *header) put(b *[headerLen]byte) {
	le := binary.LittleEndian
	le.PutUint64(b[0:], h.srcCID)
	le.PutUint64(b[8:], h.dstCID)
	le.PutUint32(b[16:], h.srcPort)
	le.PutUint32(b[20:], h.dstPort)
	le.PutUint32(b[24:], h.len)
	le.PutUint16(b[28:], h.typ)
	le.PutUint16(b[30:], h.op)
	le.PutUint32(b[32:], h.flags)
	le.PutUint32(b[36:], h.bufAlloc)
	le.PutUint32(b[40:], h.fwdCnt)
}
