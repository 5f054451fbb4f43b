# Builds a project with four compilers at once, changes it and builds it again, while `ls` and
# `find` list its folder. tests/machine/programs.rs runs this and compares the files that remain.
set -eu
umask 022
mkdir project
cd project
for i in $(seq 16); do
    printf '#include "common.h"\nint f%d(int x) { return x * SCALE + %d; }\n' "$i" "$i" > "f$i.c"
done
printf '#define SCALE 2\n' > common.h
{
    echo '#include <stdio.h>'
    for i in $(seq 16); do echo "int f$i(int);"; done
    echo 'int main(void) { int sum = 0;'
    for i in $(seq 16); do echo "sum += f$i(sum);"; done
    echo 'printf("%d\n", sum); return 0; }'
} > main.c
cat > Makefile <<'MAKE'
OBJECTS := $(patsubst %,f%.o,$(shell seq 16))
all: program result
%.o: %.c common.h
	@echo compiled $@ >> steps
	cc -O0 -c -o $@.tmp $< && mv $@.tmp $@
libf.a: $(OBJECTS)
	rm -f $@
	ar rcsD $@ $(OBJECTS)
program: main.o libf.a
	cc -o $@ main.o libf.a
result: program
	./program > $@
MAKE
trap 'touch ../stop; wait' EXIT
(while [ ! -e ../stop ]; do ls -lR . > /dev/null 2>&1 || true; find . -size +1k > /dev/null 2>&1 || true; done) &
make -s -j4 all
cp result first
make -q all
printf '#define SCALE 3\n' > common.h
make -s -j4 all
make -q all
touch f3.c f5.c
make -s -j4 all
make -q all
sort steps > sorted
rm steps
