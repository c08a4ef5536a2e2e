package ffs

import "encoding/binary"

// The on-disk format, little-endian, as NetBSD's sys/ufs/ffs/fs.h (struct fs,
// struct csum, struct cg), sys/ufs/ufs/dinode.h (struct ufs2_dinode) and
// sys/ufs/ufs/dir.h (struct direct) have it. Fields that are not named here are
// zero in a new file system.
const (
	sectorSize = 512 // DEV_BSIZE: the unit of di_blocks and of directory blocks

	superOffset = 65536 // SBLOCK_UFS2: where the first superblock is, in bytes
	superRoom   = 8192  // SBLOCKSIZE: the room that every copy has
	superSize   = 1376  // sizeof(struct fs)
	superMagic  = 0x19540119

	isClean      = 1    // FS_ISCLEAN: unmounted in order, no fsck needed
	flagsUpdated = 0x80 // FS_FLAGS_UPDATED: the superblock has the new fields
	optSpace     = 1    // FS_OPTSPACE
	inodeFormat  = 2    // FS_44INODEFMT

	groupMagic  = 0x090255
	groupHeader = 168 // offset of cg_space: where a group's bitmaps may begin
	groupStruct = 176 // sizeof(struct cg)
	summarySize = 16  // sizeof(struct csum)

	inodeSize  = 256
	rootInode  = 2 // inodes 0 and 1 belong to nobody and count as used
	direct     = 12
	indirect   = 3
	maxInline  = 120 // UFS2_MAXSYMLINKLEN: shorter targets are in the inode itself
	maxLinks   = 32767
	dirBlock   = sectorSize // UFS_DIRBLKSIZ: no entry crosses its border
	maxDirSize = 0x7fffffff
	maxFrag    = 8 // fragments in a block, at most
)

// Types of inodes (di_mode) and of directory entries (d_type: the same, shifted).
const (
	typeFIFO    = 0o010000
	typeChar    = 0o020000
	typeDir     = 0o040000
	typeBlock   = 0o060000
	typeRegular = 0o100000
	typeSymlink = 0o120000
	typeSocket  = 0o140000
)

// Flags of sys/stat.h that are the file system's own and nobody's to set: an
// inode that has one would be taken for a snapshot or a journal.
const ownFlags = 0x00200000 | 0x00400000 | 0x00800000 // SF_SNAPSHOT, SF_LOG, SF_SNAPINVAL

var le = binary.LittleEndian

func put16(b []byte, off int, v uint16) { le.PutUint16(b[off:], v) }

func put32[T int | int32 | int64 | uint32](b []byte, off int, v T) { le.PutUint32(b[off:], uint32(v)) }

func put64[T int | int64 | uint64](b []byte, off int, v T) { le.PutUint64(b[off:], uint64(v)) }

// summary is struct csum, and wider, struct csum_total.
type summary struct {
	dirs, freeBlocks, freeInodes, freeFrags int64
}

func (s *summary) add(o summary) {
	s.dirs += o.dirs
	s.freeBlocks += o.freeBlocks
	s.freeInodes += o.freeInodes
	s.freeFrags += o.freeFrags
}

func (s summary) put(b []byte, off int) {
	put32(b, off, s.dirs)
	put32(b, off+4, s.freeBlocks)
	put32(b, off+8, s.freeInodes)
	put32(b, off+12, s.freeFrags)
}

func (s summary) putTotal(b []byte, off int) {
	put64(b, off, s.dirs)
	put64(b, off+8, s.freeBlocks)
	put64(b, off+16, s.freeInodes)
	put64(b, off+24, s.freeFrags)
}

// super gives the superblock's bytes (struct fs).
func (l *Layout) super(total summary) []byte {
	g := &l.geo
	b := make([]byte, superRoom)
	put32(b, 8, g.superFrag)
	put32(b, 12, g.groupFrag)
	put32(b, 16, g.inodeFrag)
	put32(b, 20, g.dataFrag)
	put32(b, 44, g.groups)
	put32(b, 48, g.block)
	put32(b, 52, g.fragment)
	put32(b, 56, g.frag)
	put32(b, 60, 0) // fs_minfree: see below
	put32(b, 72, -g.block)
	put32(b, 76, -g.fragment)
	put32(b, 80, log2(g.block))
	put32(b, 84, log2(g.fragment))
	put32(b, 88, g.clusters) // fs_maxcontig
	put32(b, 92, g.pointers) // fs_maxbpg, as newfs sets it
	put32(b, 96, log2(g.frag))
	put32(b, 100, log2(g.fragment/sectorSize))
	put32(b, 104, min(roundUp(superSize, g.fragment), superRoom))
	put32(b, 116, g.pointers)
	put32(b, 120, g.inodesPerBlock)
	// The disk is one machine's: no reserve, so what df calls free is what
	// programs can have. Without a reserve the kernel must optimise for space
	// (it would say so on the console and switch).
	put32(b, 128, optSpace)
	put32(b, 144, le.Uint32(l.id[0:])&0x7fffffff)
	put32(b, 148, le.Uint32(l.id[4:])&0x7fffffff)
	put32(b, 156, g.summaryBytes)
	put32(b, 160, g.groupBytes)
	put32(b, 184, g.inodesPerGroup)
	put32(b, 188, g.fragsPerGroup)
	b[209] = isClean
	b[211] = flagsUpdated
	copy(b[680:712], l.label)
	put32(b, 860, g.block) // fs_maxbsize
	put64(b, 1000, superOffset)
	total.putTotal(b, 1008)
	put64(b, 1072, l.time)
	put64(b, 1080, g.frags)
	put64(b, 1088, g.dataFrags())
	put64(b, 1096, g.dataFrag)     // fs_csaddr: the summaries are the first data of group 0
	put32(b, 1196, 16384)          // fs_avgfilesize and fs_avgfpdir steer where directories go:
	put32(b, 1200, 64)             // newfs's values
	put32(b, 1316, g.clusters)     // fs_contigsumsize
	put32(b, 1320, int(maxInline)) // fs_maxsymlinklen
	put32(b, 1324, int(inodeFormat))
	put64(b, 1328, g.maxFile())
	put64(b, 1336, g.block-1)
	put64(b, 1344, g.fragment-1)
	put32(b, 1372, int(superMagic))
	return b
}

// inode is struct ufs2_dinode, as far as it is used.
type inode struct {
	mode     uint16
	links    uint16
	uid, gid uint32
	size     int64
	sectors  int64 // held, indirect blocks included
	mtime    int64 // nanoseconds
	gen      uint32
	flags    uint32
	inline   string        // a short symlink's target, in place of the addresses
	direct   [direct]int64 // a device has its number in the first
	indirect [indirect]int64
}

func (i *inode) put(b []byte) {
	sec, nsec := i.mtime/1e9, i.mtime%1e9
	if nsec < 0 {
		sec, nsec = sec-1, nsec+1e9
	}
	put16(b, 0, i.mode)
	put16(b, 2, i.links)
	put32(b, 4, i.uid)
	put32(b, 8, i.gid)
	put64(b, 16, i.size)
	put64(b, 24, i.sectors)
	for n := range 4 { // access, modification, change, birth
		put64(b, 32+8*n, sec)
		put32(b, 64+4*n, nsec)
	}
	put32(b, 80, i.gen)
	put32(b, 88, i.flags)
	for n, a := range i.direct {
		put64(b, 112+8*n, a)
	}
	for n, a := range i.indirect {
		put64(b, 208+8*n, a)
	}
	copy(b[112:112+maxInline], i.inline)
}
