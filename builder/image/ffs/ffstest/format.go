package ffstest

// Super is struct fs.
type Super struct {
	First, Unused                     int32
	Sblkno, Cblkno, Iblkno, Dblkno    int32
	OldCgoffset, OldCgmask            int32
	OldTime, OldSize, OldDsize        int32
	Ncg, Bsize, Fsize, Frag           int32
	Minfree, OldRotdelay, OldRps      int32
	Bmask, Fmask, Bshift, Fshift      int32
	Maxcontig, Maxbpg                 int32
	Fragshift, Fsbtodb, Sbsize        int32
	Spare1                            [2]int32
	Nindir, Inopb                     uint32
	OldNspf, Optim                    int32
	OldNpsect, OldInterleave, OldSkew int32
	ID                                [2]int32
	OldCsaddr, Cssize, Cgsize, Spare2 int32
	OldNsect, OldSpc, OldNcyl, OldCpg int32
	Ipg, Fpg                          int32
	OldTotal                          [4]int32
	Fmod, Clean, Ronly, OldFlags      uint8
	Fsmnt                             [468]byte
	Volname                           [32]byte
	Swuid                             uint64
	Pad, Cgrotor                      int32
	Pointers                          [16]uint64
	OldCpc, Maxbsize                  int32
	Journal                           [10]uint32
	Quota                             [6]uint32
	Sparecon64                        [9]int64
	Sblockloc                         int64
	Total                             [4]int64
	TotalSpare                        [4]int64
	Time, Size, Dsize, Csaddr         int64
	Pendingblocks                     int64
	Pendinginodes                     int32
	Snapinum                          [20]int32
	Avgfilesize, Avgfpdir, SaveCgsize int32
	Sparecon32                        [26]int32
	Flags                             uint32
	Contigsumsize, Maxsymlinklen      int32
	OldInodefmt                       int32
	Maxfilesize                       uint64
	Qbmask, Qfmask                    int64
	State, OldPostblformat, OldNrpos  int32
	Spare5                            [2]int32
	Magic                             uint32
}

// groupHeader is struct cg.
type groupHeader struct {
	First, Magic, OldTime, Cgx      int32
	OldNcyl, OldNiblk               int16
	Ndblk                           int32
	Sum                             [4]int32 // directories, free blocks, free inodes, free fragments
	Rotor, Frotor, Irotor           int32
	Frsum                           [8]int32
	OldBtotoff, OldBoff             int32
	Iusedoff, Freeoff, Nextfreeoff  int32
	Clustersumoff, Clusteroff       int32
	Nclusterblks, Niblk, Initediblk int32
	Sparecon32                      [3]int32
	Time                            int64
	Sparecon64                      [3]int64
}

// Inode is struct ufs2_dinode.
type Inode struct {
	Mode                           uint16
	Nlink                          int16
	UID, GID, Blksize              uint32
	Size, Blocks                   uint64
	Atime, Mtime, Ctime, Birthtime int64
	Mtimensec, Atimensec           int32
	Ctimensec, Birthnsec           int32
	Gen                            int32
	Kernflags, Flags               uint32
	Extsize                        int32
	Extb                           [2]int64
	DB                             [12]int64
	IB                             [3]int64
	Modrev                         uint64
	Spare                          [2]int64
}
