package main

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// hostile are the probes of a program that knows how its supervisor works; main adds them to the others.
func hostile() map[string]func(string) error {
	return map[string]func(string) error{
		"option": setOption,
	}
}

// setOption sets an option of a TCP socket: "level name".
func setOption(a string) error {
	n := numbers(a)
	fd, err := socket(unix.AF_INET6, unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	value := [4]byte{'l', 'o'}
	return errnoError(unix.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(fd), uintptr(n[0]), uintptr(n[1]), uintptr(unsafe.Pointer(&value)), unsafe.Sizeof(value), 0))
}
