package blk

// Backend is the storage behind a disk. The device calls it from one goroutine
// at a time. Offsets and lengths are bytes, multiples of 512, and have been
// checked against Size; buffers are guest RAM and may not be kept.
type Backend interface {
	// Size is the disk's size in bytes, a multiple of 512. It never changes.
	Size() int64
	// BlockSize is the logical block size in bytes to tell the guest of: a
	// power of two from 512.
	BlockSize() uint32
	// ReadOnly says that the disk cannot be written.
	ReadOnly() bool
	// Serial is the disk's identity, cut to 20 bytes for the guest.
	Serial() string

	// ReadV fills all of bufs from off, WriteV stores all of them there, or
	// they fail; then some of the bytes may have been moved. What WriteV has
	// returned from is seen by every later ReadV and by other users of the file.
	ReadV(bufs [][]byte, off int64) error
	WriteV(bufs [][]byte, off int64) error
	// Flush makes durable all that was written before it.
	Flush() error
	// Discard gives the space of n bytes from off back; what is read there
	// afterwards is zeroes or what was there.
	Discard(off, n int64) error
	// WriteZeroes makes n bytes from off read as zeroes; unmap allows their
	// space to be given back.
	WriteZeroes(off, n int64, unmap bool) error

	// Freeze puts into the files whatever a second opener of the same files
	// needs to see the same disk. The device calls it for State, while
	// quiesced; the next write ends its effect.
	Freeze() error
	// Close gives the files back.
	Close() error
}
