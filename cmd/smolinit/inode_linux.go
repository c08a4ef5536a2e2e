package main

import "golang.org/x/sys/unix"

// Linux has a step's files for tests only.
func inodeOf(st *unix.Stat_t) inode {
	return inode{
		Dev: st.Dev, Ino: st.Ino, Mode: st.Mode, Nlink: uint32(st.Nlink), UID: st.Uid, GID: st.Gid, Rdev: st.Rdev,
		Size: st.Size, Blocks: st.Blocks, Mtime: st.Mtim.Nano(), Ctime: st.Ctim.Nano(),
	}
}
