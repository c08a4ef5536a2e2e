// Package disk is the storage behind a virtual disk: a raw file or block
// device, read-write or read-only, and an overlay, which leaves its base image
// untouched and keeps the changes in a file of its own.
//
// Data moves between the caller's buffers (guest RAM) and the file by preadv
// and pwritev alone: nothing is mapped, so a file truncated under the monitor
// gives a short read, which becomes an error, and never SIGBUS.
//
// Everything is opened, checked and locked by Open. Afterwards no path is looked
// at again, and these system calls are made: preadv, pwritev, pread64, pwrite64,
// fdatasync, fallocate, fstat, close, and on block devices ioctl(BLKDISCARD).
//
// A file that is truncated while in use fails reads of what is gone, and every
// Flush until it is long enough again. A write behind its new end makes it grow,
// as with any file, and leaves zeroes in between.
//
// # Locks
//
// Files are locked with flock(2) so that two machines do not write one image:
// exclusively what is written, shared what is only read (a read-only disk, the
// base of an overlay). The lock belongs to the open file: a duplicate of the
// descriptor, in this process or another, shares it, and it ends when the last
// duplicate is closed. Programs that take no lock are not kept out.
//
// # Overlay file, version 1
//
// All numbers are little-endian. A block is 4096 bytes; the disk is the base's
// size, cut into blocks from its start, and the last block may be a short one.
//
//	offset  bytes  field
//	0       8      magic "SMOLOVLY"
//	8       4      version, 1
//	12      4      log2 of the block size, 12
//	16      8      size of the disk in bytes, a multiple of 512
//	24      8      offset of the map, 4096
//	32      8      length of the map in bytes: one bit a block, rounded up to 4096
//	40      8      offset of the data: the end of the map rounded up to 65536
//	48      8      flags, 0: a reader refuses any it does not know
//	56      32     fingerprint of the base: SHA-256 over its first 2 MiB (all of
//	               it where it is shorter), and its last 64 KiB where it is longer
//	88      4004   zero
//	4092    4      CRC-32C (Castagnoli) of bytes 0 to 4091
//
// Bit b%8 (the lowest is 0) of map byte b/8 says where block b is: 0 in the
// base, at b*4096; 1 in the overlay, at data offset + b*4096. So every block
// has one place of its own: no entry can point outside the file or into another
// block. Bits behind the last block are zero. The file is sparse and as long as
// data offset + disk size: blocks never written, or discarded, are holes, and a
// hole whose bit is 1 reads as zeroes. The map's own room is taken when a file
// with a name is made.
//
// A block's data is made durable before its bit: Flush does fdatasync, writes
// the map pages that changed, and does fdatasync again. A torn write of the map
// therefore only ever shows blocks whose data is there, and what a completed
// flush covered survives a power cut.
package disk
