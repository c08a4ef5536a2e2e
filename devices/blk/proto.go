package blk

import "encoding/binary"

const (
	// SectorSize is the unit of the protocol in bytes, whatever the disk's
	// block size (VirtIO 1.2 §5.2.4).
	SectorSize = 512
	// SerialLen is the length of a GET_ID answer in bytes (VirtIO 1.2 §5.2.6).
	SerialLen = 20

	deviceID  = 2    // VirtIO 1.2 §5.2.1
	queueSize = 1024 // NetBSD's ld wants room for a few requests of 256 descriptors

	// segMax is the most data segments of a request that a driver should use:
	// 256 descriptors with header and status (VirtIO 1.2 §5.2.4, seg_max).
	segMax = 254

	// maxTransfer bounds the data of one request in bytes, and so the time
	// that a reset or pause can wait for one. NetBSD stays under 64 KiB
	// (MAXPHYS), Linux under 4 MiB.
	maxTransfer = 64 << 20

	// Limits told to the driver (VirtIO 1.2 §5.2.4), in sectors and in
	// segments of one request. Zeroes may have to be written out, so they are
	// bounded like a transfer.
	maxDiscardSectors = 1 << 30 / SectorSize
	maxDiscardSegs    = 16
	maxZeroesSectors  = 32 << 20 / SectorSize
	maxZeroesSegs     = 2

	// discardAlign is discard_sector_alignment (VirtIO 1.2 §5.2.4): 4 KiB, the
	// block of the file systems below and of an overlay.
	discardAlign = 4096 / SectorSize
)

// Feature bits (VirtIO 1.2 §5.2.3). GEOMETRY is not offered: NetBSD would take
// the 16-bit cylinder count at its word, and works a better one out by itself.
const (
	featureSegMax      uint64 = 1 << 2
	featureRO          uint64 = 1 << 5
	featureBlkSize     uint64 = 1 << 6
	featureFlush       uint64 = 1 << 9
	featureTopology    uint64 = 1 << 10
	featureConfigWCE   uint64 = 1 << 11
	featureDiscard     uint64 = 1 << 13
	featureWriteZeroes uint64 = 1 << 14
)

// Request types and status values (VirtIO 1.2 §5.2.6).
const (
	typeIn          = 0
	typeOut         = 1
	typeFlush       = 4
	typeGetID       = 8
	typeDiscard     = 11
	typeWriteZeroes = 13

	statusOK     = 0
	statusIOErr  = 1
	statusUnsupp = 2
)

const (
	headerLen  = 16 // type, reserved, sector (VirtIO 1.2 §5.2.6)
	segmentLen = 16 // sector, num_sectors, flags: one range of a discard or write zeroes

	segmentUnmap = 1 // the flag of write zeroes that allows deallocation
)

// Offsets in configuration space (VirtIO 1.2 §5.2.4); what is not named is zero.
const (
	cfgCapacity          = 0  // le64, sectors
	cfgSegMax            = 12 // le32
	cfgBlkSize           = 20 // le32, bytes
	cfgPhysicalBlockExp  = 24 // u8, log2 of logical blocks per physical block
	cfgMinIOSize         = 26 // le16, logical blocks
	cfgWriteback         = 32 // u8, 1 = write-back cache
	cfgMaxDiscardSectors = 36 // le32
	cfgMaxDiscardSeg     = 40 // le32
	cfgDiscardAlign      = 44 // le32, sectors
	cfgMaxZeroesSectors  = 48 // le32
	cfgMaxZeroesSeg      = 52 // le32
	cfgZeroesMayUnmap    = 56 // u8
	cfgLen               = 60
)

// features are the bits offered for a disk.
func features(ro bool) uint64 {
	f := featureSegMax | featureBlkSize | featureFlush | featureTopology
	if ro {
		return f | featureRO
	}
	// Discard and write zeroes are offered whatever the file can do, so that a
	// saved machine finds the same device over another file system: the first
	// is a hint, the second falls back to writing.
	return f | featureConfigWCE | featureDiscard | featureWriteZeroes
}

// configSpace is the device's configuration but for writeback.
func configSpace(b Backend) (c [cfgLen]byte) {
	le := binary.LittleEndian
	le.PutUint64(c[cfgCapacity:], uint64(b.Size())/SectorSize)
	le.PutUint32(c[cfgSegMax:], segMax)
	le.PutUint32(c[cfgBlkSize:], b.BlockSize())
	// File systems work in 4 KiB: a guest that aligns to it spares the host
	// reading what surrounds a write.
	exp := byte(0)
	for b.BlockSize()<<exp < 4096 {
		exp++
	}
	c[cfgPhysicalBlockExp] = exp
	le.PutUint16(c[cfgMinIOSize:], 1<<exp)
	if b.ReadOnly() {
		return c
	}
	le.PutUint32(c[cfgMaxDiscardSectors:], maxDiscardSectors)
	le.PutUint32(c[cfgMaxDiscardSeg:], maxDiscardSegs)
	le.PutUint32(c[cfgDiscardAlign:], discardAlign)
	le.PutUint32(c[cfgMaxZeroesSectors:], maxZeroesSectors)
	le.PutUint32(c[cfgMaxZeroesSeg:], maxZeroesSegs)
	c[cfgZeroesMayUnmap] = 1
	return c
}

// segment is one range of a discard or write zeroes request.
type segment struct {
	sector  uint64
	sectors uint32
	flags   uint32
}

func parseSegment(b []byte) segment {
	le := binary.LittleEndian
	return segment{le.Uint64(b[0:]), le.Uint32(b[8:]), le.Uint32(b[12:])}
}
