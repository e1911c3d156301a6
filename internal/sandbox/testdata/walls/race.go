package main

import (
	"errors"
	"fmt"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// raceAddress flips an address between an allowed one and others in one thread while another binds it and listens.
func raceAddress(a string) error {
	n := numbers(a)
	port, tries := n[0], n[1]
	address := [16]byte{0: unix.AF_INET, 2: byte(port >> 8), 3: byte(port)}
	stop := flipAddress((*uint32)(unsafe.Pointer(&address[4])), 0x0100007f, 0, 0x0100007f, 0x020200c0)
	defer stop()
	outside, inside := 0, 0
	for range tries {
		fd, err := socket(unix.AF_INET, unix.SOCK_STREAM, 0)
		if err != nil {
			return err
		}
		if _, _, errno := unix.Syscall(unix.SYS_BIND, uintptr(fd), uintptr(unsafe.Pointer(&address)), 16); errno == 0 {
			if unix.Listen(fd, 1) == nil {
				if strings.HasPrefix(name(fd), "127.") {
					inside++
				} else {
					outside++
				}
			}
		}
		unix.Close(fd)
	}
	fmt.Printf("inside=%d outside=%d\n", inside, outside)
	if outside > 0 || inside == 0 {
		return errors.New("the race was won, or never ran")
	}
	return nil
}

// flipAddress has a thread change a word of an address between values until stop is called.
func flipAddress(word *uint32, values ...uint32) (stop func()) {
	var over atomic.Bool
	go func() {
		runtime.LockOSThread()
		for i := 0; !over.Load(); i++ {
			atomic.StoreUint32(word, values[i%len(values)])
		}
	}()
	return func() { over.Store(true) }
}

// flipDescriptor has a thread change what a descriptor shows, between two others, until stop is called; it has ended then.
func flipDescriptor(target, one, two int) (stop func()) {
	var over atomic.Bool
	done := make(chan bool)
	go func() {
		runtime.LockOSThread()
		for i := 0; !over.Load(); i++ {
			unix.Dup3([]int{one, two}[i%2], target, unix.O_CLOEXEC)
		}
		close(done)
	}()
	return func() {
		over.Store(true)
		<-done
	}
}

// raceListen flips one descriptor between a socket that may listen and one that nobody bound, while another thread
// binds and listens on it. No socket but the first kind may listen.
func raceListen(a string) error {
	n := numbers(a)
	port, tries := n[0], n[1]
	good := &unix.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}}
	outside, inside := 0, 0
	for range tries {
		bound, err := socket(unix.AF_INET, unix.SOCK_STREAM, 0)
		if err != nil {
			return err
		}
		if err := unix.Bind(bound, good); err != nil {
			return err
		}
		free, err := socket(unix.AF_INET, unix.SOCK_STREAM, 0)
		if err != nil {
			return err
		}
		target, err := socket(unix.AF_INET, unix.SOCK_STREAM, 0)
		if err != nil {
			return err
		}
		stop := flipDescriptor(target, bound, free)
		for range 4 {
			unix.Bind(target, good)
			unix.Listen(target, 1)
		}
		stop()
		for _, fd := range []int{bound, free, target} {
			if on, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN); err == nil && on == 1 {
				if strings.HasPrefix(name(fd), "127.") {
					inside++
				} else {
					outside++
				}
			}
			unix.Close(fd)
		}
	}
	fmt.Printf("inside=%d outside=%d\n", inside, outside)
	if outside > 0 || inside == 0 {
		return errors.New("the race was won, or never ran")
	}
	return nil
}

// raceConnect flips an address between one that is allowed and one that is not in one thread while another connects to
// it. Who listens at the second counts.
func raceConnect(a string) error {
	f := strings.Fields(a)
	_, good := sockaddr(f[0])
	_, bad := sockaddr(f[1])
	tries, _ := strconv.Atoi(f[2])
	port := good.(*unix.SockaddrInet4).Port
	address := [16]byte{0: unix.AF_INET, 2: byte(port >> 8), 3: byte(port)}
	le := func(b [4]byte) uint32 { return uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16 | uint32(b[3])<<24 }
	one, two := le(good.(*unix.SockaddrInet4).Addr), le(bad.(*unix.SockaddrInet4).Addr)
	stop := flipAddress((*uint32)(unsafe.Pointer(&address[4])), one, two)
	defer stop()
	allowed, denied := 0, 0
	for range tries {
		fd, err := socket(unix.AF_INET, unix.SOCK_STREAM, 0)
		if err != nil {
			return err
		}
		switch _, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&address)), 16); errno {
		case 0:
			allowed++
		case unix.EACCES:
			denied++
		default:
			unix.Close(fd)
			return errno
		}
		unix.Close(fd)
	}
	fmt.Printf("allowed=%d denied=%d\n", allowed, denied)
	if allowed == 0 || denied == 0 {
		return errors.New("the race never ran")
	}
	return nil
}

// raceSocket flips the descriptor between a socket and a file while it is connected to an allowed address.
func raceSocket(a string) error {
	f := strings.Fields(a)
	_, good := sockaddr(f[0])
	tries, _ := strconv.Atoi(f[1])
	connected := 0
	for range tries {
		one, err := socket(unix.AF_INET, unix.SOCK_STREAM, 0)
		if err != nil {
			return err
		}
		two, err := socket(unix.AF_INET, unix.SOCK_STREAM, 0)
		if err != nil {
			return err
		}
		target, err := unix.FcntlInt(uintptr(one), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			return err
		}
		stop := flipDescriptor(target, one, two)
		for range 3 {
			unix.Connect(target, good)
		}
		stop()
		for _, fd := range []int{one, two, target} {
			if _, err := unix.Getpeername(fd); err == nil {
				connected++
			}
			unix.Close(fd)
		}
	}
	if connected == 0 {
		return errors.New("nothing was ever connected")
	}
	return nil
}
