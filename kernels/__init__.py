"""Operations that two papers or more share; one room each."""
