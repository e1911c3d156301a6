package main

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// A proxy has one core to itself, and all that is around it the others: what is compared is then what it does with a core.

// aside keeps this process, all of its threads, from the first of its cores until back is called. On a machine of one core
// it does nothing. It returns all of them.
func aside() (before unix.CPUSet, back func()) {
	if err := unix.SchedGetaffinity(0, &before); err != nil || before.Count() < 2 {
		return before, func() {}
	}
	others := before
	others.Clear(firstOf(before))
	putOn(others)
	was := runtime.GOMAXPROCS(others.Count())
	return before, func() {
		putOn(before)
		runtime.GOMAXPROCS(was)
	}
}

func firstOf(set unix.CPUSet) int {
	for i := range 1024 {
		if set.IsSet(i) {
			return i
		}
	}
	return 0
}

// putOn puts each thread that there is; those to come are where the one was that makes them.
func putOn(set unix.CPUSet) {
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return
	}
	for _, t := range tasks {
		if tid, err := strconv.Atoi(t.Name()); err == nil {
			_ = unix.SchedSetaffinity(tid, &set) // one that has ended meanwhile
		}
	}
}

// startOnFirst starts a program on the first core of those that this process began with.
func startOnFirst(cmd *exec.Cmd, all unix.CPUSet) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var before, first unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		return err
	}
	first.Set(firstOf(all))
	if err := unix.SchedSetaffinity(0, &first); err != nil {
		return err
	}
	defer unix.SchedSetaffinity(0, &before)
	return cmd.Start()
}

// cpuTime is how long a process, all of its threads, has been on a processor, in µs, counted in ticks of 10 ms.
func cpuTime(pid int) (float64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// proc(5): user and system time are the 14th and 15th field; the second may hold spaces and ends with a parenthesis.
	fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	if len(fields) < 13 {
		return 0, fmt.Errorf("/proc/%d/stat has %d fields", pid, len(fields))
	}
	var ticks uint64
	for _, f := range fields[11:13] {
		n, err := strconv.ParseUint(f, 10, 64)
		if err != nil {
			return 0, err
		}
		ticks += n
	}
	return float64(ticks) * 10_000, nil
}
