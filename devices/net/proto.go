package net

import "encoding/binary"

const (
	deviceID = 1 // VirtIO 1.2 §5.1.1

	// queueSize is the number of descriptors of every queue. A guest posts a
	// buffer for each in a receive queue: 256 of NetBSD's 2 KiB are half a
	// megabyte, and posting them is a part of its boot.
	queueSize = 256

	// MaxQueuePairs bounds Config.QueuePairs. Each pair costs a thread that
	// waits, and a pair beyond the guest's CPUs serves nobody.
	MaxQueuePairs = 8

	// MinMTU and MaxMTU bound what a device may tell a driver, in bytes
	// (VirtIO 1.2 §5.1.4.1).
	MinMTU = 68
	MaxMTU = 65535

	etherHeader = 14 // bytes: two addresses and the type (IEEE 802.3 §3.1.1)
	vlanTag     = 4  // bytes (IEEE 802.1Q §9.3)

	// maxGSOFrame is the largest frame with segmentation offload in bytes: an
	// Ethernet header and 64 KiB (VirtIO 1.2 §5.1.6.3.1, "65550 bytes").
	maxGSOFrame = 65550
)

// Feature bits (VirtIO 1.2 §5.1.3).
const (
	FeatureCSum      uint64 = 1 << 0 // the driver may leave checksums to the device
	FeatureGuestCSum uint64 = 1 << 1 // the driver takes frames with partial checksums
	FeatureGuestTSO4 uint64 = 1 << 7 // the driver takes TCP over IPv4 unsegmented
	FeatureGuestTSO6 uint64 = 1 << 8
	FeatureHostTSO4  uint64 = 1 << 11 // the driver may send TCP over IPv4 unsegmented
	FeatureHostTSO6  uint64 = 1 << 12

	featureMTU         uint64 = 1 << 3
	featureMAC         uint64 = 1 << 5
	featureMrgRxBuf    uint64 = 1 << 15
	featureStatus      uint64 = 1 << 16
	featureCtrlVQ      uint64 = 1 << 17
	featureCtrlRX      uint64 = 1 << 18
	featureMQ          uint64 = 1 << 22
	featureCtrlMACAddr uint64 = 1 << 23

	featureVersion1 uint64 = 1 << 32 // §6.1, the transport's to offer

	offloadBits = FeatureCSum | FeatureGuestCSum | FeatureGuestTSO4 | FeatureGuestTSO6 | FeatureHostTSO4 | FeatureHostTSO6
)

// needs are the features that others cannot be without (VirtIO 1.2 §5.1.3.1).
var needs = [...]struct{ bit, base uint64 }{
	{FeatureGuestTSO4, FeatureGuestCSum},
	{FeatureGuestTSO6, FeatureGuestCSum},
	{FeatureHostTSO4, FeatureCSum},
	{FeatureHostTSO6, FeatureCSum},
	{featureCtrlRX, featureCtrlVQ},
	{featureCtrlMACAddr, featureCtrlVQ},
	{featureMQ, featureCtrlVQ},
}

// lacking gives the features of f that stand without what they need.
func lacking(f uint64) (bad uint64) {
	for _, n := range needs {
		if f&n.bit != 0 && f&n.base == 0 {
			bad |= n.bit
		}
	}
	return bad
}

// Offsets in configuration space (VirtIO 1.2 §5.1.4).
const (
	cfgMAC      = 0  // u8[6]
	cfgStatus   = 6  // le16
	cfgMaxPairs = 8  // le16
	cfgMTU      = 10 // le16, bytes
	cfgLen      = 12

	statusLinkUp = 1 // VIRTIO_NET_S_LINK_UP
)

// Fields of virtio_net_hdr (VirtIO 1.2 §5.1.6).
const (
	hdrFlags      = 0
	hdrGSOType    = 1
	hdrGSOSize    = 4
	hdrCSumStart  = 6
	hdrCSumOffset = 8
	hdrNumBuffers = 10

	flagNeedsCSum = 1 // VIRTIO_NET_HDR_F_NEEDS_CSUM
	flagDataValid = 2 // VIRTIO_NET_HDR_F_DATA_VALID

	gsoNone  = 0
	gsoTCPv4 = 1
	gsoTCPv6 = 4
)

// Control commands (VirtIO 1.2 §5.1.6.5).
const (
	ctrlHeader = 2 // bytes: class, command

	classRX     = 0
	rxPromisc   = 0
	rxAllMulti  = 1
	classMAC    = 1
	macTableSet = 0
	macAddrSet  = 1
	classMQ     = 4
	mqPairsSet  = 0

	ackOK  = 0
	ackErr = 1
)

// dir is a way through the device: the features that allow what a header asks for.
type dir struct {
	csum, tso4, tso6 uint64
	flags            byte // known flags; others are to be ignored
}

var (
	fromGuest = dir{FeatureCSum, FeatureHostTSO4, FeatureHostTSO6, flagNeedsCSum}
	toGuest   = dir{FeatureGuestCSum, FeatureGuestTSO4, FeatureGuestTSO6, flagNeedsCSum | flagDataValid}
)

// judge holds a private copy of a header against what was negotiated, for a
// frame of n bytes (VirtIO 1.2 §5.1.6.2, §5.1.6.4). It clears what means nothing
// and says whether the rest may pass, and as a frame to be segmented.
func (d *dir) judge(h *Header, features, n uint64) (gso, ok bool) {
	le := binary.LittleEndian
	h[hdrFlags] &= d.flags
	if h[hdrFlags] != 0 && features&d.csum == 0 {
		return false, false
	}
	partial := h[hdrFlags]&flagNeedsCSum != 0
	if !partial {
		clear(h[hdrCSumStart:hdrNumBuffers])
	} else if at := uint64(le.Uint16(h[hdrCSumStart:])) + uint64(le.Uint16(h[hdrCSumOffset:])); at+2 > n {
		return false, false
	}
	h[hdrNumBuffers], h[hdrNumBuffers+1] = 0, 0
	switch h[hdrGSOType] {
	case gsoNone:
		h[hdrGSOSize], h[hdrGSOSize+1] = 0, 0
		return false, true
	case gsoTCPv4:
		ok = features&d.tso4 != 0
	case gsoTCPv6:
		ok = features&d.tso6 != 0
	}
	return true, ok && partial && le.Uint16(h[hdrGSOSize:]) != 0
}

// tagged says whether an Ethernet header has a VLAN tag behind it.
func tagged(eth []byte) bool {
	t := binary.BigEndian.Uint16(eth[12:])
	return t == 0x8100 || t == 0x88a8
}
