"""Speed, memory and accuracy of each loss beside torch, and the targets they have."""
