package pipeline

func childMain() bool { return false }
