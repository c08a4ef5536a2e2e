package main

import "golang.org/x/sys/unix"

func inodeOf(st *unix.Stat_t) inode {
	return inode{
		Dev: st.Dev, Ino: st.Ino, Mode: st.Mode, Nlink: st.Nlink, UID: st.Uid, GID: st.Gid, Rdev: st.Rdev,
		Size: st.Size, Blocks: st.Blocks, Mtime: st.Mtim.Nano(), Ctime: st.Ctim.Nano(), Flags: st.Flags,
	}
}
